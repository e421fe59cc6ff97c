# Four images from one wheel: service, sidecar (light: no TensorFlow, no FastAPI), gate (the sidecar's with what checks
# signatures, for release pipelines and guards), trainer (the demo's).
#     docker build --target service -t lossguard-service .
# Bases are pinned by version; for builds that are the same for ever, put the digest that your registry shows behind it.
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /source
RUN python -m pip install --no-cache-dir build==1.2.2
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY agent agent
COPY service service
COPY migrations migrations
COPY docs/runbooks docs/runbooks
RUN python -m build --wheel --outdir /wheels

FROM python:3.11.13-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/lossguard/bin:$PATH
# The same user id in every image: the sidecar must be able to delete what the trainer wrote.
RUN useradd --uid 10001 --create-home lossguard \
    && mkdir /journal /exports /serving && chown lossguard /journal /exports /serving \
    && python -m venv /opt/lossguard
COPY --from=build /wheels /wheels

FROM base AS service
RUN wheel="$(ls /wheels/*.whl)" && pip install --no-cache-dir "${wheel}[service,objects]"
USER 10001
WORKDIR /home/lossguard
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=12 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
CMD ["python", "-m", "lossguard_service"]

FROM base AS sidecar
RUN pip install --no-cache-dir /wheels/*.whl
USER 10001
WORKDIR /home/lossguard
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=6 CMD ["lossguard", "--help"]
CMD ["lossguard", "sidecar", "/journal"]

FROM base AS gate
RUN wheel="$(ls /wheels/*.whl)" && pip install --no-cache-dir "${wheel}[gate]"
USER 10001
WORKDIR /home/lossguard
HEALTHCHECK NONE
CMD ["lossguard", "gate", "--help"]

FROM base AS trainer
RUN wheel="$(ls /wheels/*.whl)" && pip install --no-cache-dir "${wheel}[demo]"
USER 10001
WORKDIR /home/lossguard
HEALTHCHECK NONE
CMD ["python", "-m", "lossguard.demo.train", "/etc/lossguard/train.json"]
