# syntax=docker/dockerfile:1
# skillguard on vLLM and a GPU. From the repository's root:
#
#   docker build -f docker/vllm.Dockerfile -t skillguard:vllm .
#   docker run --rm --gpus all --ipc host -p 127.0.0.1:8000:8000 -v ./models:/models:ro -v ./guards:/guards:ro \
#     skillguard:vllm --model /models/my-model --artifacts /guards/ksd-mathematics --dtype bfloat16
#
# On CUDA the guards have not been tested: the start is refused until you say `-e VLLM_USE_V2_MODEL_RUNNER=0` and
# `--allow-untested-runner` (README.md).
ARG BASE=debian:bookworm-slim
ARG VLLM=vllm/vllm-openai:v0.32.0

FROM ${BASE} AS build
ARG PIP_INDEX_URL=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md ./
COPY server ./server
COPY guards ./guards
COPY artifacts ./artifacts
RUN python3 -m venv /opt/build && /opt/build/bin/pip wheel --no-deps --wheel-dir /wheels .

FROM ${VLLM} AS serve
ARG PIP_INDEX_URL=https://pypi.org/simple
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="skillguard" \
      org.opencontainers.image.description="Takes one skill away from an open-weight language model at inference time, behind an OpenAI-compatible server (vLLM)." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="docker.io/vllm/vllm-openai:v0.32.0"
USER 0:0
# Whatever vLLM's image brings stays as it is: torch, transformers and vLLM belong together.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python3 -m pip list --format=freeze > /tmp/constraints.txt \
    && python3 -m pip install --no-cache-dir --break-system-packages --constraint /tmp/constraints.txt /wheels/*.whl \
    && rm /tmp/constraints.txt \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin skillguard
# The root may be read-only: /tmp is all that is written to. vLLM would report usage statistics to its makers.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    VLLM_CACHE_ROOT=/tmp/vllm \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton \
    VLLM_NO_USAGE_STATS=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
# Healthy once every guard is verified; a large model takes minutes to load and to compile.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60m --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["skillguard", "serve", "--engine", "vllm", "--host", "0.0.0.0"]
