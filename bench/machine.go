package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// machine is where it was measured.
type machine struct {
	Processors int    `json:"processors"`
	Model      string `json:"model"`
	MemoryMiB  int    `json:"memory_mib"`
	Kernel     string `json:"kernel"`
	Go         string `json:"go"`
	Load       string `json:"load"` // average of 1, 5 and 15 minutes, before anything was measured
}

func thisMachine() machine {
	m := machine{Processors: runtime.NumCPU(), Model: "unknown", Go: runtime.Version(), Load: load(),
		Kernel: strings.TrimSpace(read("/proc/sys/kernel/osrelease"))}
	for line := range strings.Lines(read("/proc/cpuinfo")) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			m.Model = strings.TrimSpace(value)
			break
		}
	}
	var kib int
	_, _ = fmt.Sscanf(read("/proc/meminfo"), "MemTotal: %d kB", &kib)
	m.MemoryMiB = kib / 1024
	return m
}

func (m machine) String() string {
	return fmt.Sprintf("%d processors (%s), %d MiB, Linux %s, %s", m.Processors, m.Model, m.MemoryMiB, m.Kernel, m.Go)
}

// load says how busy the machine is with this and everything else.
func load() string {
	fields := strings.Fields(read("/proc/loadavg"))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

// read is a file's text, or nothing.
func read(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}
