-- Run once, when the database is made: the servers' own user, which is no administrator.
\set password `cat /run/secrets/kms-password`
CREATE ROLE kms LOGIN PASSWORD :'password';
CREATE DATABASE kms OWNER kms;
REVOKE CONNECT ON DATABASE kms FROM PUBLIC;
