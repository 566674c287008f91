"""Initialises the Vault of docker-compose.yml, makes the root key in it, and unseals it when it is sealed.

FOR TRYING OUT. It keeps the only unseal key, and the root token, in a file beside the Vault that they open:
whoever has this machine's disks has the root key, and with it every key of every app. A Vault for keys that
matter is unsealed by several people or by an HSM, and whoever sets it up revokes the root token afterwards.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Final

import hvac
import requests

from kms import private_files

_KEY: Final = "attested-kms"
# What docs/guides/keys.md asks for: the servers use the key, and never make, read or delete it.
_RULES: Final = f"""
path "transit/hmac/{_KEY}/sha2-512" {{ capabilities = ["update"] }}
path "transit/keys/{_KEY}"          {{ capabilities = ["read"] }}
path "transit/keys/{_KEY}/rotate"   {{ capabilities = ["update"] }}
path "auth/token/lookup-self"       {{ capabilities = ["read"] }}
path "auth/token/renew-self"        {{ capabilities = ["update"] }}
"""
_LOOK_EVERY: Final = 2.0  # seconds
_LEASE: Final = "1h"  # of the servers' tokens: they renew them, and log in again where they cannot


def main() -> None:
    """Open the Vault, and keep it open."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--address", required=True)
    add("--ca", type=Path, required=True)
    add("--opened-by", type=Path, required=True, help="file of the unseal key and the root token")
    add("--role-id", required=True, help="AppRole id of the servers")
    add("--secret-id-file", type=Path, required=True, help="their secret id")
    add("--once", action="store_true", help="end when it is open and set up")
    arguments = parser.parse_args()
    session = requests.Session()
    session.trust_env = False
    session.verify = str(arguments.ca)
    client = hvac.Client(arguments.address, token="", session=session, timeout=10)
    ready = False
    while not (ready and arguments.once):
        try:
            _open(client, arguments.opened_by)
            if not ready:
                _set_up(client, arguments.role_id, arguments.secret_id_file.read_text("ascii").strip())
                print("Vault is open, and the servers may use its key", flush=True)
            ready = True
        except (requests.RequestException, hvac.exceptions.VaultError) as error:
            # It starts, or just became active: what went wrong is tried again, in whole.
            print(f"not yet: {type(error).__name__}", flush=True)
        time.sleep(_LOOK_EVERY)


def _open(client: hvac.Client, opened_by: Path) -> None:
    if not client.sys.is_initialized():
        made = client.sys.initialize(secret_shares=1, secret_threshold=1)
        private_files.write_new(opened_by, json.dumps(made).encode("ascii"))
    keys = json.loads(opened_by.read_text("ascii"))
    client.token = keys["root_token"]
    if client.sys.is_sealed():
        client.sys.submit_unseal_key(keys["keys"][0])
        print("unsealed", flush=True)


def _set_up(client: hvac.Client, role_id: str, secret_id: str) -> None:
    """Make what is not there; a second run changes nothing."""
    if "transit/" not in client.sys.list_mounted_secrets_engines()["data"]:
        client.sys.enable_secrets_engine("transit")
    if "approle/" not in client.sys.list_auth_methods()["data"]:
        client.sys.enable_auth_method("approle")
    # Vault does nothing where the key exists.
    client.write_data(f"transit/keys/{_KEY}", data={"type": "hmac", "key_size": 32})
    client.sys.create_or_update_policy(_KEY, _RULES)
    role = client.auth.approle
    role.create_or_update_approle(_KEY, token_policies=[_KEY], token_ttl=_LEASE)
    role.update_role_id(_KEY, role_id)
    known = client.write_data(f"auth/approle/role/{_KEY}/secret-id/lookup", data={"secret_id": secret_id})
    if not isinstance(known, dict):  # 204: there is none such
        role.create_custom_secret_id(_KEY, secret_id)


if __name__ == "__main__":
    main()
