# Two images from one file:
#   docker build --target operator --tag clara/register-results .   the pipeline step: the base package and register.py
#   docker build --target service --tag clara/results .             service, agents and command line
# Every package comes from a lock file and is checked by its hash. Both images run as user 10001.

# The version that the tests run on.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS base
ENV PATH=/opt/clara-results/bin:$PATH \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 clara && useradd --uid 10001 --gid clara --no-create-home --shell /usr/sbin/nologin clara

FROM base AS build
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
WORKDIR /build
COPY requirements-build.lock ./
RUN python -m pip install --no-cache-dir --require-hashes --requirement requirements-build.lock \
    && python -m venv --without-pip /opt/clara-results
COPY pyproject.toml README.md LICENSE LICENSE-3rdParty ./
COPY src ./src
RUN hatchling build --target wheel --directory dist

FROM build AS build-operator
COPY requirements-operator.lock ./
RUN uv pip install --python /opt/clara-results --require-hashes --requirement requirements-operator.lock \
    && uv pip install --python /opt/clara-results --no-deps dist/*.whl

FROM build AS build-service
COPY requirements.lock ./
RUN uv pip install --python /opt/clara-results --require-hashes --requirement requirements.lock \
    && uv pip install --python /opt/clara-results --no-deps dist/*.whl

FROM base AS operator
COPY --from=build-operator /opt/clara-results /opt/clara-results
WORKDIR /app
COPY register.py LICENSE LICENSE-3rdParty ./
USER 10001:10001
CMD ["python", "register.py", "--help"]

FROM base AS service
COPY --from=build-service /opt/clara-results /opt/clara-results
WORKDIR /app
COPY LICENSE LICENSE-3rdParty ./
RUN install --directory --owner=10001 --group=10001 /var/lib/clara-results
USER 10001:10001
ENV CLARA_RESULTS_DATA=/var/lib/clara-results \
    CLARA_RESULTS_HOST=0.0.0.0
VOLUME ["/var/lib/clara-results"]
EXPOSE 8088
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8088/health/ready', timeout=4)"]
ENTRYPOINT ["clara-results"]
CMD ["serve"]
