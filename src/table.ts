import CliTable from 'cli-table3'

/** A plain table for the terminal; columns listed in `right` are aligned to the right. */
export function formatTable(head: string[], rows: string[][], right: readonly number[] = []): string {
  const table = new CliTable({
    head,
    colAligns: head.map((_, column) => (right.includes(column) ? 'right' : 'left')),
    style: { head: [], border: [] },
    chars: {
      top: '', 'top-mid': '', 'top-left': '', 'top-right': '',
      bottom: '', 'bottom-mid': '', 'bottom-left': '', 'bottom-right': '',
      left: '', 'left-mid': '', mid: '', 'mid-mid': '', right: '', 'right-mid': '', middle: ' ',
    },
  })
  table.push(...rows)
  return table.toString()
}
