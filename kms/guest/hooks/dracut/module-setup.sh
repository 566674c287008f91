#!/bin/bash
# Puts the guest side of Attested KMS into the initrd. Installed by `kms guest hooks install`.

kms='@KMS@'

# called by dracut
check() {
    require_binaries "$kms" cryptsetup dmsetup
}

# called by dracut
depends() {
    echo systemd systemd-cryptsetup crypt systemd-networkd
}

# called by dracut
installkernel() {
    # As in the hook of initramfs-tools. hostonly: the machine that builds the image need not be the guest.
    hostonly='' instmods configfs tsm tsm_report sev-guest qemu_fw_cfg virtio_pci virtio_blk virtio_scsi \
        virtio_net dm_mod dm_crypt aesni_intel aes_generic xts sha256_generic algif_skcipher af_alg
}

# called by dracut
install() {
    if ! [[ -r ${dracutsysrootdir-}/etc/attested-kms/guest.toml ]] || ! "$kms" guest hooks copy "$initdir"; then
        dfatal 'attested-kms: no initrd without /etc/attested-kms/guest.toml and the guest side'
        exit 1
    fi
    [[ -e $initdir/usr/bin/kms ]] || ln -s "$kms" "$initdir/usr/bin/kms"
    inst_multiple cryptsetup dmsetup
    inst_libdir_file 'libgcc_s.so*'

    inst_multiple -o "$systemdsystemunitdir/sys-kernel-config.mount"
    inst_simple "$moddir/attested-kms-agent.socket" "$systemdsystemunitdir/attested-kms-agent.socket"
    inst_simple "$moddir/attested-kms-agent.service" "$systemdsystemunitdir/attested-kms-agent.service"
    inst_simple "$moddir/attested-kms-console.conf" \
        "$systemdsystemunitdir/attested-kms-agent.service.d/console.conf"
    inst_simple "$moddir/attested-kms-modules.conf" /usr/lib/modules-load.d/attested-kms.conf
    $SYSTEMCTL -q --root "$initdir" enable attested-kms-agent.socket

    # For an initrd that is only for the machine it is made on, dracut's module `crypt` does this afterwards.
    local attached
    if [[ -z ${hostonly-} ]] && attached=$(grep -E '^[^#].*x-initrd\.attach' "${dracutsysrootdir-}/etc/crypttab"); then
        printf '%s\n' "$attached" >>"$initdir/etc/crypttab"
    fi

    # dracut opens a shell when a boot fails; whoever can make it fail would have it.
    mkdir -p "$initdir/etc/cmdline.d"
    echo 'rd.neednet=1 rd.shell=0 rd.emergency=poweroff' >"$initdir/etc/cmdline.d/attested-kms.conf"
}
