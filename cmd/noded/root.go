package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const defaultListen = "unix:///run/noded/noded.sock"

// app is what all subcommands share.
type app struct {
	listen string // CRI socket, "unix:///…"
	format string // "table" or "json"

	in       io.Reader
	out, err io.Writer
}

// exitCode is an error that carries the exit status of a container's command
// (or of a check) and has nothing to say.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// execute runs one command line and returns the exit status: the command's own
// for run and exec, 1 for an error, 2 for a wrong command line.
func execute(args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, err: errOut}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := rootCommand(a)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(errOut, "noded:", explain(err, a.listen))
	var usage usageError
	// cobra has no type for this one.
	if errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command") {
		return 2
	}
	return 1
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func rootCommand(a *app) *cobra.Command {
	listen := os.Getenv("NODED_LISTEN")
	if listen == "" {
		listen = defaultListen
	}
	root := &cobra.Command{
		Use:           "noded",
		Short:         "noded runs a node's pods and containers",
		Long:          "noded is a node runtime: a CRI server for the kubelet, and the commands to see and debug what it runs.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.listen, "listen", listen, "the CRI socket; also NODED_LISTEN, also --socket")
	flags.StringVarP(&a.format, "output", "o", "table", "table or json")
	root.SetGlobalNormalizationFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "socket" {
			name = "listen"
		}
		return pflag.NormalizedName(name)
	})
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.normalize() }
	root.CompletionOptions.HiddenDefaultCmd = true
	for _, c := range []func(*app) *cobra.Command{
		serveCommand, runCommand, psCommand, podsCommand, imagesCommand, pullCommand, rmiCommand,
		logsCommand, execCommand, stopCommand, rmCommand, inspectCommand, statsCommand,
		eventsCommand, checkCommand, configCommand, versionCommand,
	} {
		root.AddCommand(c(a))
	}
	for _, c := range roleCommands() {
		root.AddCommand(c)
	}
	return root
}

// roleCommands exist for --help and for completeness only: main dispatches
// these two before the command line is built.
func roleCommands() []*cobra.Command {
	return []*cobra.Command{
		{Use: "shim", Hidden: true, Short: "the parent process of all containers; started by serve", RunE: func(_ *cobra.Command, args []string) error { return shim(args) }},
		{Use: "init", Hidden: true, Short: "the first process of a pod's shared pid namespace", RunE: func(*cobra.Command, []string) error { return exitCode(initRole()) }},
	}
}

func (a *app) normalize() error {
	if strings.HasPrefix(a.listen, "/") {
		a.listen = "unix://" + a.listen
	}
	if !strings.HasPrefix(a.listen, "unix:///") {
		return usageError{fmt.Errorf("--listen %q is not unix:// and an absolute path", a.listen)}
	}
	if a.format != "table" && a.format != "json" {
		return usageError{fmt.Errorf("--output %q is not table or json", a.format)}
	}
	return nil
}

var rpcPrefix = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// explain makes one line of an error, with what to do where that is known.
func explain(err error, listen string) string {
	// A status's text begins with its code, wherever it stands in the chain.
	text := rpcPrefix.ReplaceAllString(err.Error(), "")
	if s, ok := status.FromError(err); ok {
		switch s.Code() {
		case codes.Unavailable:
			text = unavailable(text, listen)
		case codes.Unimplemented:
			text += "; this runtime cannot do it"
		}
	}
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")
}

func unavailable(text, listen string) string {
	switch {
	case strings.Contains(text, "no such file"):
		return fmt.Sprintf("nothing serves %s: start the daemon with `noded serve`, or name its socket with --listen", listen)
	case strings.Contains(text, "connection refused"):
		return fmt.Sprintf("%s is there but nothing listens: the daemon has stopped; start it with `noded serve`", listen)
	case strings.Contains(text, "permission denied"):
		return fmt.Sprintf("no permission to use %s: run this as root", listen)
	}
	return text
}
