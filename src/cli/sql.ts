import { Command } from 'commander'

import { asTransaction, installScript, readSqlFiles } from '../install/script.ts'
import { checkSchemaName, defaultSchema } from '../schema.ts'
import { wholeNumber } from './command.ts'

export function sqlCommand(): Command {
  return new Command('sql')
    .description('print the SQL that installs pgtally, for psql or a migration tool; needs no database')
    .option('--from <version>', 'print the upgrade from that version of the schema', wholeNumber(1))
    .option('--no-transaction', 'leave out BEGIN and COMMIT, for a tool that runs each migration in a transaction of its own')
    .option('--schema <name>', 'the schema that pgtally is installed in', defaultSchema)
    .action(async ({ from = 0, transaction, schema }: { from?: number; transaction: boolean; schema: string }) => {
      const script = installScript(checkSchemaName(schema), await readSqlFiles(schema), from)
      process.stdout.write(transaction ? asTransaction(script) : script)
    })
}
