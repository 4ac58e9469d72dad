# docker build --tag mantel .
# docker run -p 8443:8443 -v ./etc:/etc/mantel:ro -v mantel:/var/lib/mantel mantel

FROM rust:1.95-slim-trixie AS build
# aws-lc and SQLite are compiled from C.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package mantel --bin mantel

FROM debian:trixie-slim
# The roots that EHRs' certificates are judged by.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/mantel --create-home --shell /usr/sbin/nologin mantel
COPY --from=build /src/target/release/mantel /usr/local/bin/mantel
# By number: an orchestrator that demands a user without rights cannot look names up.
USER 10001:10001
VOLUME /var/lib/mantel
EXPOSE 8443
STOPSIGNAL SIGTERM
ENTRYPOINT ["mantel"]
CMD ["serve", "--config", "/etc/mantel"]
