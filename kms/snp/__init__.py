"""AMD SEV-SNP evidence: report, TCB, endorsement certificates, and their verification."""
