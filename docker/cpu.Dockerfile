# syntax=docker/dockerfile:1
# skillguard on a CPU, with the demo in it. From the repository's root:
#
#   docker build -f docker/cpu.Dockerfile -t skillguard:cpu .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 skillguard:cpu \
#     --allowed-hosts localhost
#
# What follows the image's name are flags of `skillguard serve`; models and keys are mounted.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
ARG PIP_INDEX_URL=https://pypi.org/simple
# The default build of torch for x86 brings gigabytes of CUDA.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/skillguard \
    && /opt/skillguard/bin/pip install --index-url "${TORCH_INDEX_URL}" 'torch==2.13.*'
WORKDIR /src
# These very files, or none.
COPY docker/requirements-cpu.lock ./
RUN /opt/skillguard/bin/pip install --require-hashes --no-deps -r requirements-cpu.lock
COPY pyproject.toml README.md ./
COPY server ./server
COPY guards ./guards
COPY artifacts ./artifacts
RUN /opt/skillguard/bin/pip install --no-deps . \
    && /opt/skillguard/bin/pip check \
    && /opt/skillguard/bin/pip uninstall --yes pip
# Serving uses no tests of packages, and nothing that code is compiled against. torch looks for its torch_shm_manager.
RUN find /opt/skillguard/lib -depth -type d \( -name test -o -name tests \) -exec rm -r {} + \
    && find /opt/skillguard/lib -depth \( -path '*/torch/include' -o -path '*/torch/share' -o -name '*.a' \) -exec rm -r {} + \
    && find /opt/skillguard/lib -type f \
        \( -path '*/torch/bin/*' ! -name torch_shm_manager -o -path '*/torch/lib/lib*test*.so' \) -delete
# What is in it, as CycloneDX.
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install 'cyclonedx-bom==7.*' \
    && /opt/tools/bin/cyclonedx-py environment --output-reproducible \
        --output-file /opt/skillguard/sbom.cdx.json /opt/skillguard/bin/python

FROM ${BASE} AS serve
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="skillguard" \
      org.opencontainers.image.description="Takes one skill away from an open-weight language model at inference time, behind an OpenAI-compatible server (CPU)." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin skillguard \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=build /opt/skillguard /opt/skillguard
# The root may be read-only: /tmp is all that is written to, and only by what is fetched or compiled there.
ENV PATH=/opt/skillguard/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
# Healthy once every guard is verified.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["skillguard", "serve", "--host", "0.0.0.0"]
