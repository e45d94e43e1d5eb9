"""The programs of the contenders: each function listens, announces its port and serves.

They do one job with the means of their own library, and are as short as its users would
write them. Nothing is imported that the program doesn't need: it would count as memory.
"""
