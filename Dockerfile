# datapool in a container.
#
#   docker build --tag datapool .                             for GPUs: the wheels of torch and faiss bring CUDA
#   docker build --tag datapool --build-arg EXTRA=cpu \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .          without CUDA, some gigabytes smaller
#
# Another registry: --build-arg BASE=registry.example/python:3.11-slim. Any Debian with Python 3.11 and its venv will do.
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS tools
RUN python3 -m venv --without-pip /opt/venv \
 && python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir --quiet uv==0.13.9
WORKDIR /build

# The versions of constraints.txt, in a layer of their own: new code does not install torch anew, or send it anew.
FROM tools AS dependencies
ARG EXTRA=gpu
ARG TORCH_INDEX
COPY pyproject.toml constraints.txt ./
# Compiled here, once: whoever runs the image cannot write to it, and Python would compile all it imports at each start.
RUN /opt/uv/bin/uv pip install --no-cache --quiet --compile-bytecode --python /opt/venv/bin/python \
      ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}" --index-strategy unsafe-best-match} \
      --constraint constraints.txt --requirement pyproject.toml --extra "${EXTRA}" \
 && rm --force /opt/venv/.lock

FROM tools AS code
COPY . .
RUN /opt/uv/bin/uv pip install --no-cache --quiet --compile-bytecode --python /opt/venv/bin/python --no-deps \
      --prefix /opt/code . \
 && rm --force /opt/code/.lock

FROM ${BASE}
# git: DVC works in a repository. tini: the first process of a container has to look after signals and orphans, see below.
# Their versions are Debian's of the day: it keeps no older ones, so a pinned version could not be installed for long.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git tini \
 && rm -rf /var/lib/apt/lists/* \
 # A mounted workspace belongs to somebody else than root, and its commits need some author if it names none.
 && git config --system --add safe.directory '*' \
 && git config --system user.name datapool \
 && git config --system user.email datapool@localhost \
 && useradd --uid 1000 --create-home datapool \
 && mkdir --parents /home/shared_dir /home/output_dir /workspace \
 && chown datapool: /home/shared_dir /home/output_dir /workspace
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=code /opt/code /opt/venv

# Nothing here goes to the network by itself; these tell the libraries so. NVIDIA_*: which devices older runtimes of
# NVIDIA give the container.
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
# No USER: the container begins as root, only to become the owner of the folder that is mounted (datapool/lightly_docker/container.py), so
# that what it writes belongs to them; only in a folder of root's it stays root. `--user` is obeyed.
#
# tini is the first process: it hands signals on, and buries orphans. What `docker stop` sends, datapool-container turns into
# a Ctrl-C for all that it has started: a stage ends, and DVC gives back its locks, which it would not at a SIGTERM.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "-s", "--", "datapool-container"]
CMD ["--help"]
