package guard

import (
	"errors"
	"slices"
)

// leftDog is a watchdog that an earlier daemon of this boot has left armed, and that this guard does not use.
type leftDog struct {
	path string
	dog  Dog
	err  string // what the log was told last
	// stays: err is that it cannot be disarmed any more.
	stays bool
}

// LeftArmed are the watchdogs that earlier daemons of this boot have left armed, without the one that this daemon uses (keep, "" for
// none). Nobody would feed them any more, and each would reset this host. due: those daemons have left one armed, or processes stopped, and
// what they had promised has not been taken back (Withdraw), so that others may count on it.
func LeftArmed(s Store, keep string) (paths []string, due bool, err error) {
	saved, err := s.Load()
	if err != nil || saved == nil {
		return nil, false, err
	}
	paths = slices.DeleteFunc(saved.armed(), func(path string) bool { return path == keep })
	return paths, !saved.Parted && len(paths)+len(saved.Frozen) > 0, nil
}

// armed are the paths of watchdogs that may run, as far as that was noted.
func (s *Saved) armed() []string {
	list := slices.Clone(s.Left)
	if s.Armed && s.Device != "" && !slices.Contains(list, s.Device) {
		list = append(list, s.Device)
	}
	return list
}

// Disarmed notes that a watchdog that an earlier daemon has left armed is not any more. It is for where no guard
// runs, which notes that itself.
func Disarmed(s Store, path string) error {
	saved, err := s.Load()
	if err != nil || saved == nil {
		return err
	}
	if saved.Device == path {
		saved.Armed, saved.Device = false, ""
	}
	saved.Left = slices.DeleteFunc(saved.Left, func(p string) bool { return p == path })
	return s.Save(*saved)
}

// lockedLeft feeds what an earlier daemon has left armed while its promise is kept, and disarms it when nobody counts on it any
// more (free).
func (g *Guard) lockedLeft(v view, free bool) {
	if free {
		g.lockedDisarmLeft()
		return
	}
	if len(g.left) == 0 || !g.lockedKept(v) {
		return
	}
	for _, l := range g.left {
		if err := l.dog.Feed(); err != nil {
			g.lockedNotDisarmed(&l.err, l.path, err)
		}
	}
}

// lockedDisarmLeft disarms what an earlier daemon has left armed. What cannot be disarmed is fed.
func (g *Guard) lockedDisarmLeft() {
	var rest []*leftDog
	for _, l := range g.left {
		err := l.dog.Feed() // which opens it
		if err == nil {
			err = l.dog.Disarm()
		}
		if err == nil {
			g.log.Info("a watchdog that an earlier vmlockd has left armed, and that the configuration does not name any more, is disarmed", "event", "guard-watchdog", "device", l.path)
			continue
		}
		rest, l.stays = append(rest, l), errors.Is(err, ErrStays)
		g.lockedNotDisarmed(&l.err, l.path, err)
	}
	if len(rest) < len(g.left) {
		g.left = rest
		g.lockedSave()
	}
}
