"""``make vm-demo``: a whole virtual machine, from power-on to an open disk, on a computer without SEV-SNP.

Real are QEMU, OVMF, the Debian kernel, the initrd with the guest side in it, LUKS2, TLS, the server and its
policy. SIMULATED is the processor's part alone: nothing encrypts the machine's memory, and its reports are
signed by a chip of `kms.simulator` on the host (docs/decisions/0019).
"""
