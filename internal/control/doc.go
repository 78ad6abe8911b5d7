// Package control is the operator's way into the daemon: HTTP and JSON on a unix
// socket, described in docs/control-api.md. vmlockctl and everybody else use it
// through Client or with curl.
//
// What it promises:
//
//   - Only root and the daemon's own user are served; others are disconnected
//     before a byte of theirs is read.
//   - Requests, clients and everything that is kept are bounded, and every answer
//     is there in about a second, with a word about what is missing. Only a
//     release may take as long as a request of libvirt may.
//   - It takes part in nothing: a slow or malicious client delays no lock, and a
//     lock that hangs delays no answer but that of its own release.
//   - Every error is {"error":{"code":...,"message":...}}, and a list without
//     elements is [].
//
// A Server and an Events may be used from many goroutines.
package control
