package lab

// emulator is QEMU for the nodes' domains: the lab's own program, which starts QEMU with its image locks off.
const emulator = "/usr/local/bin/qemu-system-x86_64"
