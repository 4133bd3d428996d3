"""The pipeline step that registers results: find the files, say for whom they are, hand them to the service.

It needs the base package only, and imports late: start-up time is its speed.

::

    command     argv → exit code; the one place that prints results and errors
    arguments   the flags and their help
    request     flags, environment and settings → who registers what, from where
    data        ``--data`` → the elements that make one task each
    scan        folders → every regular file in them, or an error
    plan        files → URIs, digests and the idempotency key
    submit      plan → service: uploads, registration, retries
    follow      tasks → their end
    progress    what is said on stderr meanwhile
"""
