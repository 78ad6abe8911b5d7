package wire

// UpgradeUnix is the protocol to which a request for a unix socket of a node switches: the bytes of that socket.
const UpgradeUnix = "unix-stream"
