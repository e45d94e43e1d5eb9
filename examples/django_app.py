"""Django, all of it in one file.

    glb serve django_app:application --clones 4
    curl http://127.0.0.1:8000/

Of a project that ``django-admin startproject`` made, serve its *wsgi* module as it is:
``glb serve mysite.wsgi:application``. It needs django.
"""

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of this example",
)


def index(request: HttpRequest) -> HttpResponse:
    clone = request.META["glb.clone"]
    return HttpResponse(f"served by clone {clone}\n", content_type="text/plain")


urlpatterns = [path("", index)]
application = get_wsgi_application()
