"""The console: pages for people, served by the service itself.

``pages`` holds what every page is made with, and the one way in which they answer; the other modules hold the pages
and what is done on them. Pages call the same use cases as the API. Everything that they load comes from ``static``.
"""
