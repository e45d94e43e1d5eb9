"""What do many hubs buy, and what do they cost?"""
