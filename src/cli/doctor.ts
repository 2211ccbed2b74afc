import { styleText } from 'node:util'

import type { Command } from 'commander'

import type { Diagnosis, Finding, FindingLevel, Remedy } from '../index.ts'
import { databaseCommand, negativeAnswer, printJson, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'

export function doctorCommand(): Command {
  return databaseCommand('doctor')
    .description('look for whatever makes counts wrong, late or slow, or soon will, and say what to do; reads only; exit code 1 on errors')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nEach finding has a code; docs/doctor.md explains them all.')
    .action((options: ConnectionOptions & { json?: true }) =>
      withConnection(options, async ({ tally }) => {
        const diagnosis = await tally.doctor()
        if (options.json) printJson(diagnosis)
        else printLine(describeDiagnosis(diagnosis))
        if (diagnosis.findings.some(({ level }) => level === 'error')) process.exitCode = negativeAnswer
      }),
    )
}

const width = 80
/** So many findings of one code are told in full: what ails a hundred counters is most often one thing. */
const mostOfOneCode = 3
const colors = { error: 'red', warning: 'yellow', info: 'cyan' } as const

function describeDiagnosis({ findings, fine, notChecked }: Diagnosis): string {
  const counted = (['error', 'warning'] as const).map((level) => {
    const count = findings.filter((finding) => finding.level === level).length
    return `${count === 0 ? 'no' : count} ${level}${count === 1 ? '' : 's'}`
  })
  const byCode = Map.groupBy(findings, ({ code }) => code)
  const told = findings.flatMap((finding) => {
    const same = byCode.get(finding.code) ?? []
    const position = same.indexOf(finding)
    if (position < mostOfOneCode) return [describeFinding(finding)]
    const others = same.slice(mostOfOneCode)
    return position === mostOfOneCode ? [wrap(`… and ${others.length} more of ${finding.code}, see --json: ${names(others)}`, '')] : []
  })
  // What a finding names already is not said twice.
  const said = findings.flatMap(({ code, problem }) => (code === 'NOT_CHECKED' || code === 'CHECK_FAILED' ? [problem] : [])).join()
  const skipped = Map.groupBy(notChecked.filter(({ check }) => !said.includes(check)), ({ reason }) => reason)
  return [
    `${counted.join(', ')}.`.replace(/^n/, 'N'),
    ...told,
    ...(fine.length === 0 ? [] : [wrap(`Fine: ${fine.join(', ')}.`, '')]),
    ...[...skipped].map(([reason, checks]) => wrap(`Not checked (${reason}): ${checks.map(({ check }) => check).join(', ')}.`, '')),
  ].join('\n\n')
}

function names(findings: readonly Finding[], most = 10): string {
  const first = findings.slice(0, most).map(({ subject }) => subject.name)
  return first.join(', ') + (findings.length > most ? ', …' : '.')
}

function describeFinding({ level, code, subject, problem, remedy }: Finding): string {
  const title = subject.name.startsWith(subject.kind) || subject.kind === 'server' ? subject.name : `${subject.kind} ${subject.name}`
  return [`${label(level)}  ${title}  [${code}]`, wrap(problem, '  '), ...remedy.map((one) => describeRemedy(one))].join('\n')
}

const label = (level: FindingLevel) => styleText(colors[level], level.toUpperCase(), { stream: process.stdout })

/** Advice is wrapped like all prose; what is to be pasted stays as it is: SQL ends with a semicolon, and a command begins with the program. */
function describeRemedy(remedy: Remedy): string {
  if ('advice' in remedy) return wrap(`> ${remedy.advice}`, '  ', '    ')
  const text = 'sql' in remedy ? remedy.sql : remedy.command
  return text.split('\n').map((line) => `      ${line}`).join('\n')
}

/** In lines of 80 columns; a word that is longer stands alone. */
function wrap(text: string, indent: string, hanging = indent): string {
  const lines: string[] = []
  let line = indent
  for (const word of text.split(/\s+/)) {
    if (line.trim() !== '' && line.length + 1 + word.length > width) {
      lines.push(line)
      line = hanging
    }
    line += line.trim() === '' ? word : ` ${word}`
  }
  return [...lines, line].join('\n')
}
