package config

import (
	"reflect"
	"strings"
	"testing"
)

// TestKept: a program that goes on with the configuration that it had, as a newer one could not
// start, has all of it, and the rules by which its disks have their names.
func TestKept(t *testing.T) {
	_, text := uncommented(t)
	c, err := Parse("vmlockd.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Identity.List()) == 0 || len(c.Guard.VM) == 0 {
		t.Fatal("the file has no rules, or names no virtual machine")
	}
	b, err := c.Keep()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "\n") {
		t.Error("it is more than a line")
	}
	again, err := Kept(b)
	if err != nil || !reflect.DeepEqual(again, c) {
		t.Errorf("kept was %+v, error %v\nand it had %+v", again, err, c)
	}
}

func TestKeptIsDamaged(t *testing.T) {
	for _, text := range []string{
		"", "{", `{"Backend":7}`,
		`{"Backend":"loca"}`,
		`{"RequestTimeout":"soon"}`,
	} {
		if c, err := Kept([]byte(text)); err == nil {
			t.Errorf("%q was taken for %+v", text, c)
		}
	}
	c := Default()
	c.Identity.Rules = []Rule{{Path: "/srv/**", Scope: "everywhere"}}
	b, err := c.Keep()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Kept(b); err == nil || !strings.Contains(err.Error(), "everywhere") {
		t.Errorf("a rule of an unknown scope: %v", err)
	}
}
