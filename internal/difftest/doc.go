// Package difftest holds the tests that compare vmlockd's answers with those of
// libvirt's own virtlockd, byte for byte where clients look. Both run side by
// side, each on a directory of its own, and get the same input.
//
// The tests are skipped where virtlockd is not installed, unless VMLOCKD_LAB is
// set: then they fail. Run by root they need to make a mount namespace, because
// virtlockd's socket has a fixed place then.
package difftest
