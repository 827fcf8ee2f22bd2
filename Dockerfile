# The operator. Builds with `docker build .` and with `buildah bud .` alike, from the repository's root.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS dependencies
COPY requirements/build.txt requirements/operator.txt /requirements/
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /requirements/build.txt \
 && python3 -m venv --without-pip /opt/venv \
 && /opt/build/bin/uv pip install --no-cache --compile-bytecode --require-hashes \
      --python /opt/venv/bin/python -r /requirements/operator.txt

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="dpo-operator" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=dependencies /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/dpo \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
# Bytecode is written here, because the root file system is read-only when the container runs.
COPY operator/dpo_operator /opt/dpo/dpo_operator
RUN python3 -m compileall -q /opt/dpo
USER 65532:65532
ENTRYPOINT ["python", "-m", "dpo_operator"]
