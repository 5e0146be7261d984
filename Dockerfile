# The tag is the version in rust-toolchain.toml.
FROM rust:1.95.0-bookworm AS build
# The image has this toolchain; without the variable rustup would fetch clippy and rustfmt as well.
ENV RUSTUP_TOOLCHAIN=1.95.0
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin antiphon

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/antiphon --create-home antiphon
COPY --from=build /src/target/release/antiphon /usr/local/bin/antiphon
COPY LICENSE /usr/share/doc/antiphon/LICENSE
ENV ANTIPHON_STATE_DIR=/var/lib/antiphon \
    ANTIPHON_BIND=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/antiphon
VOLUME /var/lib/antiphon
EXPOSE 8080 8081
# SIGTERM, docker's default, drains.
ENTRYPOINT ["antiphon"]
CMD ["start"]
