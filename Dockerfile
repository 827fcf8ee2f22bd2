# The operator. Builds with `docker build .` and with `buildah bud --layers .` alike, from the repository's root.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

# One layer for all dependencies. The installer comes and goes within it, so the image holds neither uv nor a compiler.
FROM ${PYTHON_IMAGE} AS dependencies
COPY requirements/build.txt requirements/operator.txt /opt/requirements/
RUN python3 -m venv /tmp/uv \
 && /tmp/uv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /opt/requirements/build.txt \
 && python3 -m venv --without-pip /opt/venv \
 && /tmp/uv/bin/uv pip install --no-cache --compile-bytecode --require-hashes \
      --python /opt/venv/bin/python -r /opt/requirements/operator.txt \
 && rm -rf /tmp/uv

FROM dependencies
LABEL org.opencontainers.image.title="dpo-operator" \
      org.opencontainers.image.licenses="Apache-2.0"
# Libraries look up the name of the user that they run as.
RUN echo 'dpo:x:65532:65532:DPO operator:/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'dpo:x:65532:' >> /etc/group
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/dpo \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
# Bytecode is written here, because the root file system is read-only when the container runs.
COPY operator/dpo_operator /opt/dpo/dpo_operator
RUN python3 -m compileall -q /opt/dpo
USER 65532:65532
ENTRYPOINT ["python", "-m", "dpo_operator"]
