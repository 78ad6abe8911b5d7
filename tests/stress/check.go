package stress

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// checkTimeout bounds the check of one resource, which takes milliseconds.
const checkTimeout = time.Minute

// shown is how many operations before a violation its error shows.
const shown = 15

// Check returns nil if every answer in the history can be explained. Otherwise
// the error tells, for each resource that cannot, the first answer that cannot
// be and what came before it; Porcupine's picture of it goes to dir, as HTML,
// unless dir is "".
func Check(h *History, dir string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	all, resources := newBackground(h), byResource(h.Ops)
	var (
		mu   sync.Mutex // guards errs
		errs []error
		wg   sync.WaitGroup
	)
	jobs := make(chan int, len(resources))
	for r := range resources {
		jobs <- r
	}
	close(jobs)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for r := range jobs {
				if err := checkResource(all, resources[r], r, dir); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func checkResource(all background, ops []Op, resource int, dir string) error {
	switch porcupine.CheckOperationsTimeout(model, operations(all, ops), checkTimeout) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("resource %d: its %d operations could not be checked within %v", resource, len(ops), checkTimeout)
	}
	ops = shortest(all, ops)
	_, info := porcupine.CheckOperationsVerbose(model, operations(all, ops), checkTimeout)
	picture := ""
	if dir != "" {
		path := filepath.Join(dir, fmt.Sprintf("resource-%d.html", resource))
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = porcupine.VisualizePath(model, info, path)
		}
		picture = "\nall of it as a picture: " + path
		if err != nil {
			picture = "\nits picture could not be written: " + err.Error()
		}
	}
	return fmt.Errorf("resource %d: no order of its operations explains the answers; it had last been %s; the last answers, of which the first that cannot be is the latest:\n%s%s",
		resource, explained(info), lastAnswers(all.owners, ops), picture)
}

// shortest leaves out everything after the first answer that cannot be explained.
func shortest(all background, ops []Op) []Op {
	var ends []time.Duration
	for _, o := range ops {
		if o.Return != never {
			ends = append(ends, o.Return)
		}
	}
	slices.Sort(ends)
	at, _ := slices.BinarySearchFunc(ends, true, func(t time.Duration, _ bool) int {
		r := porcupine.CheckOperationsTimeout(model, operations(all, until(ops, t)), checkTimeout)
		if r == porcupine.Illegal {
			return 0
		}
		return -1
	})
	if at == len(ends) {
		return ops
	}
	return until(ops, ends[at])
}

// explained is the state after the longest order that Porcupine found.
func explained(info porcupine.LinearizationInfo) *state {
	var best []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) > len(best) {
				best = order
			}
		}
	}
	s := model.Init().(*state)
	for _, o := range best {
		s = s.apply(o.Input.(step), o.Output.(Answer))
	}
	return s
}

// lastAnswers shows the last operations by the time of their answer; those
// without one come last.
func lastAnswers(owners []Owner, ops []Op) string {
	ops = slices.Clone(ops)
	slices.SortStableFunc(ops, func(a, b Op) int {
		switch {
		case a.Return < b.Return:
			return -1
		case a.Return > b.Return:
			return 1
		}
		return 0
	})
	var answered, open []string
	for _, o := range ops {
		line := fmt.Sprintf("  node %d: %v", owners[o.Owner].Node, o)
		if o.Return == never || o.pending() {
			open = append(open, line)
		} else {
			answered = append(answered, line)
		}
	}
	lines := answered[max(0, len(answered)-shown):]
	if len(open) > 0 {
		lines = append(append(lines, "and these, which may have happened:"), open[max(0, len(open)-shown):]...)
	}
	return strings.Join(lines, "\n")
}
