# The server, and every other command of `kms`: built from the committed lock, run by a user without rights.
# Left out is the extra `pkcs11`: an HSM needs its vendor's library in the image too. Add both in an image of
# your own that begins FROM this one's stages.
FROM python:3.11.15-slim AS build
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
ENV UV_PROJECT_ENVIRONMENT=/opt/attested-kms UV_PYTHON=/usr/local/bin/python3.11 UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /source
# The libraries first: a change of ours does not fetch them again.
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev --extra traces --no-install-project
COPY README.md LICENSE ./
COPY migrations migrations
COPY policies policies
COPY kms kms
RUN uv sync --locked --no-dev --extra traces --no-editable

FROM python:3.11.15-slim
# The image of slim Debian, less what only an attacker would use.
RUN pip uninstall --yes --quiet --root-user-action=ignore setuptools wheel pip \
 && groupadd --gid 10001 kms \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin kms \
 && install --directory --owner 10001 --group 10001 --mode 0700 \
      /var/lib/attested-kms /var/lib/attested-kms-anchor
COPY --from=build /opt/attested-kms /opt/attested-kms
ENV PATH=/opt/attested-kms/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    KMS_DATA_DIR=/var/lib/attested-kms KMS_LISTEN=0.0.0.0:8443
USER 10001:10001
VOLUME ["/var/lib/attested-kms", "/var/lib/attested-kms-anchor"]
EXPOSE 8443 9443
# Alive, not ready: a server without a policy is well. It asks itself, and sends nothing: the certificate, which
# may be for other names, is not looked at.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import ssl, urllib.request as r; r.urlopen('https://127.0.0.1:8443/healthz', timeout=4, context=ssl._create_unverified_context())"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["kms"]
CMD ["serve"]
