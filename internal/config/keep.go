package config

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Keep makes bytes of c for Kept. They are one line of JSON.
func (c Config) Keep() ([]byte, error) { return json.Marshal(c) }

// Kept is the configuration of which Keep made text, also after the file was changed. What
// follows from what is written, as the rules of [identity] do, is made anew; an error says
// that text is not what Keep makes of a configuration without mistakes.
func Kept(text []byte) (Config, error) {
	const name = "the configuration that was kept"
	var c Config
	if err := json.Unmarshal(text, &c); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	all := c.Identity.check(name, nil)
	for _, p := range c.problems() {
		all = append(all, &Mistake{File: name, Key: p.key, What: p.what})
	}
	if len(all) > 0 {
		return Config{}, errors.Join(all...)
	}
	return c, nil
}
