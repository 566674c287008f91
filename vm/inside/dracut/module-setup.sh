#!/bin/bash
# dracut module of the demo alone: the SIMULATED processor interface, and what uses the keys and the disk.

# called by dracut
check() { return 255; }

# called by dracut
depends() { echo attested-kms; }

# called by dracut
installkernel() { hostonly='' instmods fuse virtio_console virtio_rng ext4; }

# called by dracut
install() {
    inst_multiple sha256sum cut cat grep
    for file in tsm_fuse.py psp_port.py workload; do
        inst_simple "/usr/share/attested-kms-demo/$file"
    done
    inst_simple "$moddir/agent.conf" "$systemdsystemunitdir/attested-kms-agent.service.d/vm-demo.conf"
    for unit in vm-demo-tsm.service vm-demo-fetch.service vm-demo.service; do
        inst_simple "$moddir/$unit" "$systemdsystemunitdir/$unit"
    done
    $SYSTEMCTL -q --root "$initdir" enable vm-demo-tsm.service vm-demo.service
}
