package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What 'make unit' runs again without the race detector, and what 'make unit-long' runs
// more of, are names in the Makefile: one of a test that is called otherwise by now runs
// nothing, and says nothing.
func TestNamesInMakefile(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	words := func(variable string) []string {
		m := regexp.MustCompile(`(?m)^` + variable + ` = (.*)$`).FindSubmatch(makefile)
		if m == nil {
			t.Fatalf("there is no %s in the Makefile", variable)
		}
		return strings.Fields(string(m[1]))
	}
	for _, list := range []string{"WITHOUT_RACE", "LONG"} {
		names, packages := words(list), words(list+"_PACKAGES")
		found := map[string]bool{}
		for _, p := range packages {
			any := false
			for _, name := range testsIn(t, filepath.Join("../..", p)) {
				if slices.Contains(names, name) {
					found[name], any = true, true
				}
			}
			if !any {
				t.Errorf("%s_PACKAGES has %s, which has no test of %s", list, p, list)
			}
		}
		for _, name := range names {
			if !found[name] {
				t.Errorf("%s has %s, which is in none of %v", list, name, packages)
			}
		}
	}
	// And who does less with the race detector is run without.
	packages, marked := words("WITHOUT_RACE_PACKAGES"), 0
	tests, err := filepath.Glob("../../*/*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range tests {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "testenv."+"WithRace") {
			continue
		}
		marked++
		p := "./" + strings.TrimPrefix(filepath.ToSlash(filepath.Dir(file)), "../../")
		if !slices.Contains(packages, p) {
			t.Errorf("%s knows of the race detector, and is not in WITHOUT_RACE_PACKAGES", p)
		}
	}
	if marked == 0 {
		t.Error("no test knows of the race detector")
	}
}

func testsIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w*)\(`).FindAllSubmatch(text, -1) {
			names = append(names, string(m[1]))
		}
	}
	return names
}
