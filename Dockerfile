# datapool in a container.
#
#   docker build --tag datapool .                             for GPUs: the wheels of torch and faiss bring CUDA
#   docker build --tag datapool --build-arg EXTRA=cpu \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .          without CUDA, some gigabytes smaller
#
# With --build-arg RAY=1 it can be a node of a Ray cluster as well, see docs/scaling.md.
# Another registry: --build-arg BASE=registry.example/python:3.11-slim. Any Debian with Python 3.11 and its venv module works.
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS tools
RUN python3 -m venv --without-pip /opt/venv \
 && python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir --quiet uv==0.13.9
WORKDIR /build

# The versions of constraints.txt, in a layer of their own: when the code changes, torch is not installed and pushed again.
FROM tools AS dependencies
ARG EXTRA=gpu
ARG TORCH_INDEX
ARG RAY
COPY pyproject.toml constraints.txt ./
# Compiled here, once: the user of a container cannot write to /opt, so Python would compile all imports at each start.
RUN /opt/uv/bin/uv pip install --no-cache --quiet --compile-bytecode --python /opt/venv/bin/python \
      ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}" --index-strategy unsafe-best-match} \
      --constraint constraints.txt --requirement pyproject.toml --extra "${EXTRA}" --extra heic --extra video --extra s3 \
      ${RAY:+--extra ray "ray[default]"} \
 && rm --force /opt/venv/.lock

FROM tools AS code
COPY . .
RUN /opt/uv/bin/uv pip install --no-cache --quiet --compile-bytecode --python /opt/venv/bin/python --no-deps \
      --prefix /opt/code . \
 && rm --force /opt/code/.lock

FROM ${BASE}
# git: DVC works in a repository. tini: process 1 of a container must forward signals and reap orphans, see below.
# Versions are not pinned: Debian removes old ones, so a pinned version could soon not be installed.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git tini \
 && rm -rf /var/lib/apt/lists/* \
 # A mounted workspace does not belong to root, and its commits need an author where none is configured.
 && git config --system --add safe.directory '*' \
 && git config --system user.name datapool \
 && git config --system user.email datapool@localhost \
 && useradd --uid 1000 --create-home datapool \
 && mkdir --parents /home/shared_dir /home/output_dir /workspace \
 && chown datapool: /home/shared_dir /home/output_dir /workspace
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=code /opt/code /opt/venv

# datapool does not use the network; these variables stop its libraries from using it. NVIDIA_*: the devices that older NVIDIA
# runtimes pass to the container.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DVC_NO_ANALYTICS=true \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="datapool" \
      org.opencontainers.image.description="Pick the new images that add something, keep them in a growing, DVC-versioned pool" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

WORKDIR /workspace
# No USER: the container starts as root and becomes the owner of the mounted folder (datapool/lightly_docker/container.py), so
# that the files it writes belong to that user. It stays root only if root owns the folder. `--user` is respected.
#
# tini is process 1: it forwards signals and reaps orphans. datapool-container turns the SIGTERM of `docker stop` into a SIGINT
# for all processes that it started: stages end and DVC releases its locks, which it does not on SIGTERM.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "-s", "--", "datapool-container"]
CMD ["--help"]
