package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"noded.dev/noded/config"
)

// configFlags are the flags that stand above the configuration files.
type configFlags struct {
	file, dir   string
	root, state string
}

func (f *configFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "config", defaultConfig, "configuration file; a missing one is an error unless it is the default")
	cmd.Flags().StringVar(&f.dir, "config-dir", "", "folder of drop-ins, *.toml; conf.d beside the configuration file otherwise")
	cmd.Flags().StringVar(&f.root, "root", "", "overrides the key root")
	cmd.Flags().StringVar(&f.state, "state", "", "overrides the key state")
}

// load reads the configuration and puts the flags above it. With --state alone
// the socket moves into that folder too: two daemons that differ in their
// folders do not meet at one socket.
func (f *configFlags) load(cmd *cobra.Command) (config.Config, error) {
	file, dir := f.file, f.dir
	if dir == "" {
		dir = filepath.Join(filepath.Dir(file), "conf.d")
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config") {
		file = ""
	}
	cfg, err := config.Load(file, dir)
	if err != nil {
		return config.Config{}, err
	}
	if f.root != "" {
		cfg.Root = f.root
	}
	if f.state != "" {
		if cfg.CRI.Listen == "unix://"+cfg.State+"/noded.sock" {
			cfg.CRI.Listen = "unix://" + f.state + "/noded.sock"
		}
		cfg.State = f.state
	}
	if listen := cmd.Flag("listen"); listen.Changed {
		cfg.CRI.Listen = listen.Value.String()
	} else if env := os.Getenv("NODED_LISTEN"); env != "" {
		cfg.CRI.Listen = env
	}
	return cfg, cfg.Validate()
}

func configCommand(*app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print or check the configuration",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(configDefaultCommand(), configDumpCommand(), configValidateCommand())
	return cmd
}

func configDefaultCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "default",
		Short: "Print the default configuration with what each key means",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), config.DefaultFile())
			return err
		},
	}
}

func configDumpCommand() *cobra.Command {
	var f configFlags
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "Print the configuration in force after files, drop-ins and flags",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.load(cmd)
			if err != nil {
				return err
			}
			text, err := config.Dump(cfg)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	f.add(cmd)
	return cmd
}

func configValidateCommand() *cobra.Command {
	var f configFlags
	cmd := &cobra.Command{
		Use:   "validate [FILE]",
		Short: "Check the configuration files and name every problem",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				_, err := config.Load(args[0], "")
				return severalLines(cmd, err)
			}
			_, err := f.load(cmd)
			return severalLines(cmd, err)
		},
	}
	f.add(cmd)
	return cmd
}

// severalLines prints each problem on a line of its own, as compilers do, so
// that an editor can jump to it.
func severalLines(cmd *cobra.Command, err error) error {
	if err == nil {
		fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
		return nil
	}
	fmt.Fprintln(cmd.ErrOrStderr(), err)
	return exitCode(1)
}
