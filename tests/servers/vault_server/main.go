// The vault command itself, unchanged: built from its published module, because tests need the real server
// and no package registry has its binary.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() { os.Exit(command.Run(os.Args[1:])) }
