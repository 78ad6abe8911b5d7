// Package closer is a process that closes the device of a DLM lockspace after the
// daemon has ended, when the kernel has answered everything that the daemon had
// asked for.
//
// The kernel closes the files of a process that is killed, whatever it was doing.
// If a request about a lock is on its way to another node at that moment, Linux 6.1
// can crash when the answer comes (package dlm tells why), and with the kernel all
// virtual machines of the host. So the device stays open in a second process, which
// does nothing but wait for the end of the first, read what still comes, and end.
// Only then are the daemon's locks orphans that the next daemon can adopt, so that
// one waits for it (Wait).
//
// What is promised: the closer never reads from the device while the daemon lives and
// has not dismissed it; it closes the device before it lets go of the lock that Wait
// waits for; it ends by itself after the daemon, at once when nothing is under way
// and otherwise as package dlm says of DrainFile; and its own death changes nothing as
// long as the daemon lives, which is told of it. If it is killed while it waits for an
// answer, Linux 6.1 can crash as it could without it; the lock is free only when the
// device is closed also then (see lockFD).
//
// All functions may be called from any goroutine; of a Closer and a Guard one method
// at a time.
package closer
