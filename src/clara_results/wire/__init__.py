"""Request and answer bodies of the HTTP contract, shared by api and client.

They are standard-library dataclasses, so that the operator starts without pydantic; FastAPI validates them by
``__pydantic_config__``. In JSON the field names are camelCase. ``codec`` turns them into JSON and back.
"""
