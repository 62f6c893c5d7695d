# PostgreSQL as Debian packs it, started as the official image is: POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD_FILE,
# PGDATA. Either will do: ROCK_POSTGRES_IMAGE=postgres:16 docker-compose up -d
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN apt-get update -qq \
    && mkdir -p /etc/postgresql-common \
    && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/*
COPY docker/postgres-start.sh /usr/local/bin/postgres-start
ENTRYPOINT ["/bin/sh", "/usr/local/bin/postgres-start"]
CMD ["postgres"]
# What asks the server to finish what it does and end, rather than to wait for every client.
STOPSIGNAL SIGINT
