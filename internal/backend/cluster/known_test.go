package cluster

// Known is how many things of this host handles stand for.
func (b *Backend) Known() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.known.Len()
}
