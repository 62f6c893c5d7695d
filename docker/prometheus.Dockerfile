# Prometheus as Debian packs it. The official image will do as well: ROCK_PROMETHEUS_IMAGE=prom/prometheus docker-compose up -d
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o prometheus -g prometheus /prometheus
USER prometheus
ENTRYPOINT ["prometheus"]
