// Package journal keeps what must survive the daemon: which locks were intended,
// granted and are being released, for whom, and which lockspaces were created.
//
// What it promises:
//
//   - When a method returns nil its record is in the kernel, and the next process
//     of this boot reads it, at whatever instruction this one is killed.
//   - When a method returns an error, or never returns because the process was
//     killed, its record may be there or not be there. After an error it is not.
//   - What Open returns was written by a Journal of this boot, whole. Damaged parts
//     are never guessed at: Damage says that they exist, the file that has them is
//     kept, and that something may be missing is itself journalled until Settled.
//   - A journal that is begun says itself that nobody knows yet what was held before it, from the moment it is
//     there until Suspect or Settled returns (Recovered.Fresh).
//   - One process has a journal open at a time.
//   - The file stays below 4 MiB and twice its live content, and what is appended
//     to it while it is compacted. Where the file system is full, entries that
//     exist can still be released and forgotten.
//
// It promises nothing about a crash of the machine: there is no fsync. The locks
// end with the boot, and so does the journal: it belongs into the run-time
// directory, which is in memory, and a journal of another boot is set aside.
//
// # The file
//
// It is one append-only file of records, each with a checksum (record.go), which
// is replaced by rename(2) when much of it is obsolete (compact.go). A record is
// one write(2). If the process is killed in the middle of it, the file ends in a
// part of a record, which Open removes. Everything else that is no record is
// damage, and reading goes on at the next record that is valid at its place.
//
// The files in the directory: "journal", "journal.lock" (held with flock(2) by the
// user of the journal), "journal.new" (a compaction that has not finished),
// "journal.other-boot" and "journal.damaged-*" (set aside, never read again), and "given-back", a directory with another
// journal, of what owners gave back (gifts.go).
//
// # Why not bbolt
//
// The four records of a lock's life (intend, grant, releasing, forget) cost, on
// two cores of a virtual machine with tmpfs (BenchmarkPair, BenchmarkBoltPair;
// bbolt 1.5 with NoSync and batches of all goroutines):
//
//	                     live locks   1 goroutine    8      64
//	this package                  0      4.9 us    5.8     6.1
//	                        100,000      6.1 us    6.6     6.8
//	bbolt                         0       84 us    20      21
//	                         10,000      247 us    52      19
//
// and no allocation against 50 to 300. The goal is 40,000 pairs a second on both
// cores together, of which the journal may take a fraction of 25 us, also when few
// callers are there to share a batch; and nobody should wait for one to fill. A record is 1.2 us, most of it
// the system call; writing the records of several goroutines with one call was not
// worth its complexity, since many goroutines pay hardly more than one does.
//
// Opening takes 9 ms with 10,000 live locks and 80 ms with 100,000. A live lock
// takes 35 bytes of memory and about 190 in the file. While a journal with 100,000
// is compacted, in 0.1 s, callers are held up twice: 4 ms at the beginning, less
// than 0.1 ms at the end.
package journal
