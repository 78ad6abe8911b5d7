package main

import "github.com/spf13/cobra"

func root() *cobra.Command { return &cobra.Command{Use: "lab"} }
func exitStatus(error) int { return 1 }
