# One Vault for docker-compose.yml: TLS, and storage that survives a restart. Not for keys that matter: there is
# one of it, and ops/compose/vault_opener.py keeps what unseals it on the same machine.
storage "raft" {
  path    = "/vault/file"
  node_id = "vault"
}

listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/run/secrets/vault-tls"
  tls_key_file  = "/run/secrets/vault-tls-key"
}

api_addr     = "https://vault:8200"
cluster_addr = "https://vault:8201"
# mlock(2) would need CAP_IPC_LOCK: let the machine have no swap, or encrypted swap.
disable_mlock = true
