"""Endorsement certificates that guests need not bring."""
