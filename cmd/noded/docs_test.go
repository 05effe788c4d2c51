package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestDocsNameCommands keeps the pages' `noded …` commands and flags to those
// that exist, and README to naming every visible one.
func TestDocsNameCommands(t *testing.T) {
	root := rootCommand(&app{})
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../README.md", "../../packaging/noded.service", "../../hack/run.sh")
	used := map[string]bool{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		// The tutorial's way of writing it.
		plain := strings.ReplaceAll(string(text), `"$noded" `, "\n$ noded ")
		for _, m := range commandInText.FindAllStringSubmatch(plain, -1) {
			checkLine(t, root, page, strings.Fields(m[1]), used)
		}
	}
	for _, c := range root.Commands() {
		if !c.Hidden && c.Name() != "help" && c.Name() != "completion" && !used[c.Name()] {
			t.Errorf("no page shows the command %s", c.Name())
		}
	}
}

// commandInText finds `noded …`, "$ noded …" and "noded …" at the begin of an
// indented or fenced line.
var commandInText = regexp.MustCompile("(?m)(?:`|^\\s*\\$ |^\\s*# |^\\s+|^|=/usr/bin/)(?:sudo )?noded ((?:[a-z]|--)[^`\n#|&;]*)")

func checkLine(t *testing.T, root *cobra.Command, page string, words []string, used map[string]bool) {
	t.Helper()
	if len(words) == 0 || strings.HasPrefix(words[0], "-") {
		return
	}
	cmd, rest, err := root.Find(words)
	if err != nil || cmd == root {
		// Prose begins with noded as well: "noded runs a pod".
		if len(words) > 1 && strings.HasPrefix(words[1], "-") {
			t.Errorf("%s: there is no command `noded %s`", page, strings.Join(words, " "))
		}
		return
	}
	used[strings.Fields(cmd.CommandPath())[1]] = true
	for _, word := range rest {
		name, isFlag := strings.CutPrefix(word, "--")
		if !isFlag || name == "" {
			// Flags after the image or the container are the command's.
			if !strings.HasPrefix(word, "-") && (cmd.Name() == "run" || cmd.Name() == "exec") {
				return
			}
			continue
		}
		name, _, _ = strings.Cut(strings.Trim(name, "].,:\""), "=")
		if cmd.Flags().Lookup(name) == nil && cmd.InheritedFlags().Lookup(name) == nil {
			t.Errorf("%s: `noded %s` has no flag --%s", page, cmd.Name(), name)
		}
	}
}

// Every command must be able to say what it does, without a daemon.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command, path []string)
	walk = func(c *cobra.Command, path []string) {
		var out bytes.Buffer
		if code := execute(append(path, "--help"), nil, &out, &out); code != 0 || !strings.Contains(out.String(), "Usage:") {
			t.Errorf("noded %s --help: exit %d\n%s", strings.Join(path, " "), code, out.String())
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("noded %s: what it does in a few words is %q", strings.Join(path, " "), c.Short)
		}
		for _, sub := range c.Commands() {
			if !sub.Hidden {
				walk(sub, append(path[:len(path):len(path)], sub.Name()))
			}
		}
	}
	walk(rootCommand(&app{}), nil)
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		text string
	}{
		{"nosuch", 2, "unknown command"},
		{"ps --nosuch", 2, "unknown flag"},
		{"run", 2, "too few arguments"},
		{"--listen tcp://1.2.3.4 ps", 2, "not unix://"},
		{"-o xml ps", 2, "not table or json"},
		{"run -d --rm x", 2, "--detach"},
		{"--listen /nonexistent/x.sock ps", 1, "start the daemon with `noded serve`"},
		{"--socket unix:///nonexistent/x.sock ps", 1, "start the daemon"},
		{"config dump --config /nonexistent/c.toml", 1, "no such file"},
		{"config default", 0, ""},
	} {
		var out, errOut bytes.Buffer
		code := execute(strings.Fields(c.args), nil, &out, &errOut)
		if code != c.code || !strings.Contains(errOut.String(), c.text) {
			t.Errorf("noded %s: exit %d, want %d; %q, want %q in it", c.args, code, c.code, errOut.String(), c.text)
		}
		if c.code != 0 && strings.Count(errOut.String(), "\n") != 1 {
			t.Errorf("noded %s: the error is not one line: %q", c.args, errOut.String())
		}
	}
}
