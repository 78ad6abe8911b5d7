// Package difftest holds the tests that compare vmlockd's answers with those of
// libvirt's own virtlockd, byte for byte where clients look. Both run side by
// side, each on a directory of its own, and get the same input.
//
// With VMLOCKD_LAB=1 vmlockd is the built program; otherwise it is in the test's own
// process, where the race detector sees it, and less is played at random.
//
// The tests are skipped where virtlockd is not installed, unless VMLOCKD_LAB is
// set: then they fail. Run by root they need to make a mount namespace, because
// virtlockd's socket has a fixed place then.
package difftest
