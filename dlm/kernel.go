package dlm

// Kernel is where the DLM is reached: Host is the real one, package dlmtest has a simulated one. What passes through a
// Device are the kernel's own bytes (include/uapi/linux/dlm_device.h), so that a simulation exercises the same encoding
// and the same checks.
//
// A Kernel must be comparable (a pointer, or a struct without slices): Create uses it to find a call for the same
// lockspace that is still under way.
type Kernel interface {
	// Control opens the control device, with which lockspaces are made and removed.
	Control() (Device, error)
	// Minor is the minor number of the lockspace's device on this node. The error is ErrNoLockspace if it has none.
	Minor(lockspace string) (uint32, error)
	// Lockspace opens the lockspace's device, which Minor found.
	Lockspace(lockspace string, minor uint32) (Device, error)
}

// Device is an open DLM device. Its methods may be called from any goroutine at the same time, and no call waits for
// another one. Errors of the kernel are syscall.Errno.
type Device interface {
	// Write gives the kernel one request and returns what the kernel's write returned, which is no count of bytes but a lock
	// id, a minor number or 0. It returns when the kernel does, and that may take as long as the lockspace is stopped.
	Write(request []byte) (int, error)
	// Read waits for one result. After Close has begun it returns os.ErrClosed.
	Read(buf []byte) (int, error)
	// Close returns when the kernel has let the device go: locks that are not persistent are gone then, persistent ones
	// are orphans. It waits for writes that are still in the kernel, and for a stopped lockspace.
	Close() error
}
