package logs

// EventKey is the attribute by which a record says which of Events it tells of.
// Its value is a name of that table. In the journal it becomes MESSAGE_ID and
// VMLOCKD_EVENT; in other formats it is an attribute like any other.
const EventKey = "event"

// Event is a kind of record that programs may look for.
type Event struct {
	Name string
	// ID is the journal's MESSAGE_ID (systemd.journal-fields(7)): a random 128-bit
	// number, which stays the same as long as the event means the same.
	ID string
}

// Events are all there are. docs/events.md explains them; a test compares the two.
var Events = []Event{
	{"lock-granted", "64b5e12d46eb9d7571c40f3d706d428d"},
	{"lock-refused", "0907e6dbfe436915792601338456478d"},
	{"lock-released", "8ea7a706083d11ceb72bfadf9cefea6c"},
	{"lock-released-gone", "6c778f1e74fdf2777fc34c4380faf474"},
	{"lock-released-untold", "1d202b2f58c9b8ff27c4a7bae7e309ca"},
	{"lock-forced", "692d75cd59b732d3c5aebec06eebab04"},
	{"lock-release-failed", "2e1d163f2ce748784159b6d810f92165"},
	{"lock-taken-back", "63116cd1ae09f1e5ce160bae7603c4bc"},
	{"lock-not-taken-anew", "2f6e0d9ab1c84b7593d7e86fa05c4b1e"},
	{"lock-taken-anew", "5398d813749a044b97c36fe1fccd7d9b"},
	{"lock-lost", "6d5e17aae4544d6a5bd686a88ce2fed4"},
	{"lock-taken-again", "f6b2916fdee642cdc4385a0d37abad4e"},
	{"lock-not-taken-again", "bc5b7ba0dd45ba881276b3b8fe1cf63d"},
	{"given-back-not-kept", "3e1ed3cb4a210f282496fae513a53e25"},
	{"owner-gone", "5fb919e72645c8647957bb03ea31a9cd"},
	{"owner-ending", "318eccefd204e48a7521f1526c33a67a"},
	{"owner-end-failed", "e3e2ca9865c0a03d30b2af88b1c255f9"},
	{"owner-unverified", "b306c88c3ae33f6d90ad3adc642e4dc8"},
	{"lockspace-joined", "40bfadeef8f3a7567637a669dfc845e8"},
	{"lockspace-not-joined", "3308cd7240bffe8d222c4a0c4ac41fbd"},
	{"lockspace-stopped", "0ddb9ab29f45d595437984984d358320"},
	{"lockspace-running", "0a2824518c7d8d97c5c326e11d232897"},
	{"quorum-lost", "584128e2a96539606d27459d20f7faf4"},
	{"reboot-needed", "5e2f6bb77e06b8148fea08de0e2e90f0"},
	{"held-until-reboot", "b297a508b704c5ef97a38f4f53f9755a"},
	{"lock-not-given-back", "92a9451846d0ec41d6a3a675f67ca174"},
	{"daemon-ready", "ddf3443e6e913a587b2783f0d32e463f"},
	{"daemon-stopped", "42d2e56f194fa408955cf4e2064f4d34"},
	{"stopped-holding", "73f412ed33d0eeb137898196a8ab3bdd"},
	{"locks-restored", "9a2b8ab391325e25c0d70ac76d13360f"},
	{"locks-not-yet", "7f0b8c3e92d14a5e8d6a41c7b05f39e2"},
	{"holder-incomplete", "50a30a850f20544569405a285cd50e33"},
	{"doubt-settled", "747cbad373751c1fd55f86854af530f0"},
	{"virtlockd-replaced", "71b3a64d752cce55d7aa11e81db6500d"},
	{"virtlockd-conflict", "a763dbe333f7a23919d4cbd5397209d8"},
	{"journal-damaged", "10615b5df4e5767276f02d1b924b5470"},
	{"journal-header-damaged", "e0b1c9a26d534f7a8f3d7c15a94be720"},
	{"journal-mended", "5d1c7f0b9a3e4c8296b0d47ef2538a61"},
	{"restart-refused", "97bff9d062fd0df3623241f6aed902de"},
	{"log-lost", "b017e043763cf95589979f33a859b56e"},
	{"audit-unwritable", "80c6f5d67a78394fe8a6029d9711d751"},
	{"metrics-unreachable", "bba414c77cf06fc6fe443e675b112046"},
	{"guard-cluster-lost", "d22a7afd560ede375e48c482fde89368"},
	{"guard-cluster-back", "8cb0d27ec5364969703dea56e8771aeb"},
	{"guard-stopped", "81f0dc8ebb68bb9d6307841918db9044"},
	{"guard-continued", "1b68c136f691cbf205e3f10f8ac41531"},
	{"guard-killed", "8f1bb54ecb36659c4d8217b762d877f3"},
	{"guard-left-stopped", "a3ff5e2f0f953ace6f59838099c93d8a"},
	{"guard-failed", "2b5c81d9833cdecd8587d434e8cb916a"},
	{"guard-unprotected", "686f6bbb7c0ba45d3beffbda89fe6da1"},
	{"guard-unsafe", "da2fe1c6000f9977ac593beab3e5ccd6"},
	{"guard-watchdog", "af8329a874b96aaf69d763743c3e1989"},
	{"guard-watchdog-stays", "5d0c3f9e7a1b4c68b2e4970d6f8a31c5"},
	{"guard-silent", "e64765af10f76563befd469435c93440"},
	{"hold-off-begun", "ece5ae3a40ef0b5a0e05d0bc388f7633"},
	{"hold-off-ended", "4ef04dabbbf299d208f8f931c438ad74"},
}

var idOf = func() map[string]string {
	ids := make(map[string]string, len(Events))
	for _, e := range Events {
		ids[e.Name] = e.ID
	}
	return ids
}()
