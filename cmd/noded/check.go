package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"noded.dev/noded/config"
)

// level is how bad a finding is; the worst one is check's exit status.
type level int

const (
	levelOK   level = iota
	levelWarn       // noded works, but something is missing or worse than it could be
	levelFail       // pods cannot run, or not safely
)

func (l level) String() string { return [...]string{"OK", "WARN", "FAIL"}[l] }

// finding is one line of check.
type finding struct {
	Level  string `json:"level"`
	Topic  string `json:"topic"`
	Text   string `json:"text"`
	Advice string `json:"advice,omitempty"` // what to do; "" where there is nothing to do
	level  level
}

// report gathers findings.
type report struct{ findings []finding }

func (r *report) add(l level, topic, text, advice string) {
	r.findings = append(r.findings, finding{l.String(), topic, text, advice, l})
}

func (r *report) ok(topic, format string, args ...any) {
	r.add(levelOK, topic, fmt.Sprintf(format, args...), "")
}

func (r *report) worst() level {
	worst := levelOK
	for _, f := range r.findings {
		worst = max(worst, f.level)
	}
	return worst
}

// inspector looks at one machine with one configuration. root stands for "/"
// where /proc and /sys are read.
type inspector struct {
	*report
	root string
	cfg  config.Config
}

func (i *inspector) path(name string) string { return filepath.Join("/", i.root, name) }

// value is a small file's trimmed content; "" if it cannot be read.
func (i *inspector) value(name string) string {
	data, err := os.ReadFile(i.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func checkCommand(a *app) *cobra.Command {
	var f configFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what this machine lacks and what is wrong in the configuration",
		Long: "check looks at the machine and the configuration and changes nothing.\n" +
			"Its exit status is 0 where all is well, 1 with a warning, 2 where pods cannot run.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.load(cmd)
			i := &inspector{report: &report{}, cfg: cfg}
			if err != nil {
				i.add(levelFail, "configuration", strings.ReplaceAll(err.Error(), "\n", "; "), "correct it; what follows is about the default configuration")
				i.cfg = config.Default()
			} else {
				i.ok("configuration", "valid")
			}
			i.all(cmd.Context())
			if err := a.printReport(i.report); err != nil {
				return err
			}
			if worst := i.worst(); worst > levelOK {
				return exitCode(worst)
			}
			return nil
		},
	}
	f.add(cmd)
	return cmd
}

func (i *inspector) all(ctx context.Context) {
	i.privileges()
	i.kernel()
	i.overlay()
	i.cgroups()
	i.runtimes(ctx)
	i.checkpoints(ctx)
	i.network(ctx)
	i.limits()
	i.folders()
	i.images()
	i.daemon(ctx)
}

func (a *app) printReport(r *report) error {
	if a.format == "json" {
		return writeJSON(a.out, r.findings)
	}
	for _, f := range r.findings {
		if err := printFinding(a.out, f); err != nil {
			return err
		}
	}
	return nil
}

func printFinding(w io.Writer, f finding) error {
	advice := ""
	if f.Advice != "" {
		advice = "\n" + strings.Repeat(" ", 22) + "-> " + f.Advice
	}
	_, err := fmt.Fprintf(w, "%-5s %-15s %s%s\n", f.Level, f.Topic, printable(f.Text), advice)
	return err
}
